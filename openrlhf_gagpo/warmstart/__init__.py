"""A small model that starts with some skill: tokenizer, demonstrations, behaviour cloning.

Without pretrained weights (quick start, controlled comparisons on a CPU), reinforcement learning starts from random
weights and sees no reward. ``demonstrations`` plays noisy-expert episodes, ``tokenizer`` makes a word-level tokenizer
from their text, ``clone`` trains a tiny Qwen3 on them, and ``pipeline`` runs all of these and saves a Hugging Face
folder.
"""
