"""At what scale an adapter was trained: who records it, and what counts."""
