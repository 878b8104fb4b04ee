"""What templates tell about a soft-biometric label: mutual information, gender probes, variable elimination."""
