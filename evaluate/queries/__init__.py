"""What belongs to the queries of retrieval: what is right for each, where it is found, and tables of it."""
