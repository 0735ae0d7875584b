"""Arrays as images and HTML."""
