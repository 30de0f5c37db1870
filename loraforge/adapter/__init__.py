"""An adapter as it travels between formats, and the pure stages of a conversion."""
