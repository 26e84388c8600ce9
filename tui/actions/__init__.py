"""What the user can do in the app: the registry says it once, and a module per subject has the handlers."""
