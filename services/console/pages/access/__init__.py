"""Who may see and do what: sessions, the guard before every request, and security headers."""
