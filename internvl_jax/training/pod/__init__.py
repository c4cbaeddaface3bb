"""The processes of a pod: how they find each other, agree, stop together, and end when one of them does."""
