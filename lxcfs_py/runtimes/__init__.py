"""What container engines are told, and a small container of our own."""
