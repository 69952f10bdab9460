//! Certificates that a tool trusts instead of the system's.

use std::path::Path;

use rustls::pki_types::{CertificateDer, pem::PemObject as _};

use super::ToolSetupError;

/// Reads a PEM file.
///
/// # Errors
/// [`ToolSetupError::Path`] if it cannot be read, or there is no certificate in it.
pub(super) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ToolSetupError> {
    let fault = |why: String| ToolSetupError::Path { path: path.to_owned(), why };
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| fault(error.to_string()))?;
    if certificates.is_empty() {
        return Err(fault("there is no certificate in it".to_owned()));
    }
    Ok(certificates)
}
