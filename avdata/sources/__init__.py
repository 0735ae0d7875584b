"""Download, verify and extract the source files of datasets."""
