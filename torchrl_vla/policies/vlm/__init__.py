"""Vision-language models of ``transformers`` under action heads."""
