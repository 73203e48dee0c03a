"""A small model that starts with some skill: tokenizer, demonstrations, behaviour cloning.

Where no pretrained weights are at hand (quick start, controlled comparisons on a CPU), reinforcement learning from
random weights sees no reward. ``demonstrations`` plays noisy-expert episodes, ``tokenizer`` makes a word-level
tokenizer of their text, ``clone`` trains a tiny Qwen3 on them, and ``pipeline`` does it all and saves a Hugging Face
folder.
"""
