"""Download, verify and unpack a dataset's source files."""
