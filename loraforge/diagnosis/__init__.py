"""What is wrong with an adapter: doctor."""
