"""Finding neighbours and ranks, exactly or by any index of FAISS, and the metrics of rankings."""
