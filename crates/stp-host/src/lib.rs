//! stp-host
