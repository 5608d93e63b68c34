"""A static-file HTTPS server that lets the kernel encrypt straight from the page cache."""

__version__ = "0.1.0"
