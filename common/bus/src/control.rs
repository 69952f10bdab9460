//! Reading the control stream as it stands.

use writ_common::{
    control::{Activation, ControlEvent, ControlState},
    ids::TenantId,
    keys::PublicKey,
    policy::PolicyBundle,
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
        self.read_control(tenant, root, |_, _| {}).await
    }

    /// Control state as of now, and every policy that was ever put in force with its files, the present one last.
    ///
    /// # Errors
    /// [`BusError`] if the stream cannot be read.
    pub async fn policies(
        &self,
        tenant: &TenantId,
        root: PublicKey,
    ) -> Result<(ControlState, Vec<(Activation, PolicyBundle)>), BusError> {
        let mut policies = Vec::new();
        let state = self
            .read_control(tenant, root, |state, event| {
                if let (ControlEvent::Policy(bundle), Some(activation)) = (event, state.activations().back())
                {
                    policies.push((activation.clone(), bundle));
                }
            })
            .await?;
        Ok((state, policies))
    }

    async fn read_control(
        &self,
        tenant: &TenantId,
        root: PublicKey,
        mut applied: impl FnMut(&ControlState, ControlEvent),
    ) -> Result<ControlState, BusError> {
        let mut state = ControlState::new(tenant.clone(), root);
        let tail = self.tail(&control_stream(tenant), &Subject::Control.of(tenant), 1).await?;
        tail.drain(|message| {
            if let Ok(document) = state.apply(message.sequence, &message.payload) {
                applied(&state, document.event);
            }
        })
        .await?;
        Ok(state)
    }
}
