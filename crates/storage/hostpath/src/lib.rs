//! A CSI driver that keeps volumes in a directory of the node.
