//! stp-core
