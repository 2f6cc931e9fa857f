"""A whole coordinator in one file: written, read again, checked."""
