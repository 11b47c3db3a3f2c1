"""The recommender and its retrieval: data, models, training, search. Knows nothing of LLM policies or Gymnasium."""
