"""Files built to harm or to mislead: loraforge refuses each with one sentence, a remedy, and no trace."""
