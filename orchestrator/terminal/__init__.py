"""What a person sees of the verbs."""
