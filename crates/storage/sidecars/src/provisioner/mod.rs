//! Makes a volume for each claim that asks this driver for one, and deletes it when it is released.

pub mod decide;
mod journal;
pub mod names;
pub mod objects;
pub mod plan;
pub mod record;
pub mod storage_class;
pub mod topology;
pub mod volume;
