"""The configs that ship with the package."""
