"""What is known of trainers, failure texts and settings: tables and their readers."""
