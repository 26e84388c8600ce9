"""What the chat screen is made of, a widget or a panel per file."""
