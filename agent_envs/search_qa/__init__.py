"""Question answering with a search engine, on official benchmarks or in a generated world."""
