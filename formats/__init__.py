"""Other people's file formats, read and written. Nothing here is needed to understand the rest."""
