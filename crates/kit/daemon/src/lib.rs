//! What every daemon needs: logs, signals, and the health and metrics port.
