"""Exchange: documents with their embeddings from the folders of other tools, and to and from open files."""
