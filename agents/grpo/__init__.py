"""Training of an LLM policy by imitation and by GRPO. Lean, on plain torch; see agents/llm_grpo.py for the way in."""
