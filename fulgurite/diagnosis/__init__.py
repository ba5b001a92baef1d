"""Why a policy does not learn: counted facts, and findings with what to do about them."""
