"""Datasets: text from files, the standard library or the Hugging Face hub; labelled images; records; mixtures."""
