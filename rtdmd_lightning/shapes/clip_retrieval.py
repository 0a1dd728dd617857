def retrieval_report(*a): return {}
