"""Configuration: one typed definition per field, resolved from ordered sources."""
