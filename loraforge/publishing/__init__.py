"""What is published on the Hub, and how."""
