"""What the three processes say to each other; the only ground on which they meet."""
