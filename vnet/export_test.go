package vnet

// NewNIC is for tests that leave a NIC half made.
const NewNIC = newNIC
