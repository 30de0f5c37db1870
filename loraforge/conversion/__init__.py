"""The verbs on one adapter: read, convert, write, verify, inspect, stamp."""
