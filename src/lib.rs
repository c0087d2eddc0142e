//! wirechat
