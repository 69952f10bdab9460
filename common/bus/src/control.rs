//! Reading the control stream as it stands.

use writ_common::{
    control::ControlState,
    ids::TenantId,
    keys::PublicKey,
    subjects::{Subject, control_stream},
};

use crate::{Bus, error::BusError};

impl Bus {
    /// Control state as of now, read from the beginning. What does not count is passed over: whoever follows the
    /// stream reports it.
    ///
    /// # Errors
    /// [`BusError`] if the stream cannot be read.
    pub async fn control_state(&self, tenant: &TenantId, root: PublicKey) -> Result<ControlState, BusError> {
        let mut state = ControlState::new(tenant.clone(), root);
        let mut tail = self.tail(&control_stream(tenant), &Subject::Control.of(tenant), 1).await?;
        let mut pending = tail.pending;
        while pending > 0 {
            let message = tail.next().await?;
            pending = message.pending;
            drop(state.apply(message.sequence, &message.payload));
        }
        Ok(state)
    }
}
