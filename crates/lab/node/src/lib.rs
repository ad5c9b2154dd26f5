//! The lab's node: what the kubelet does at the extension points.
