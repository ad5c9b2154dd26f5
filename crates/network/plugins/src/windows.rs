//! `win-bridge` and `win-overlay`: plugins of Windows hosts, refused by name so that a list that has one says why it fails.

use outrigger_cni_sdk::{AddResult, Attachment, Call, Code, Error, Plugin, conf};

conf! {
    /// A plugin for Windows hosts only. Here ADD, CHECK and STATUS are refused with code 2; there is nothing to remove, so DEL
    /// and GC succeed.
    pub struct WindowsConf {}
}

/// The plugin of this name.
pub struct Windows(pub &'static str);

impl Windows {
    fn refuse<T>(&self) -> Result<T, Error> {
        let instead = if self.0 == "win-bridge" { "bridge" } else { "bridge or flannel" };
        Err(Error::new(
            Code::UnsupportedField,
            format!("type {} works on Windows hosts only: use {instead} in the lists of Linux nodes", self.0),
        ))
    }
}

impl Plugin for Windows {
    type Conf = WindowsConf;
    const ABOUT: &'static str = "plugin for Windows hosts";

    fn add(&self, _: &Call<'_, WindowsConf>) -> Result<AddResult, Error> {
        self.refuse()
    }

    // What cannot be made need not be removed; refusing that would keep a container for ever.
    fn del(&self, _: &Call<'_, WindowsConf>) -> Result<(), Error> {
        Ok(())
    }

    fn check(&self, _: &Call<'_, WindowsConf>) -> Result<(), Error> {
        self.refuse()
    }

    fn gc(&self, _: &Call<'_, WindowsConf>, _: &[Attachment]) -> Result<(), Error> {
        Ok(())
    }

    fn status(&self, _: &Call<'_, WindowsConf>) -> Result<(), Error> {
        self.refuse()
    }
}
