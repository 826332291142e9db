"""A job file, a sweep or the site file becomes a checked spec, or one list of its mistakes."""
