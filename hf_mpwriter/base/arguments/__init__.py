"""What users give by name: arguments and variables, checked and refused by that name; the writers call it."""
