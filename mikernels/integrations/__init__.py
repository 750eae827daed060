"""Plugs into other libraries, one file each; nothing here is imported unless you import it."""
