"""The experiments of "Linear Transformers Are Secretly Fast Weight Programmers" (arXiv 2102.11174), made runnable."""
