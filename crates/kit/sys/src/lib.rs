//! The kernel interfaces that need unsafe code or raw ioctls: loop devices and mounts.
