"""Everything put together: configuration root, command line, Ray launcher, live view, report."""
