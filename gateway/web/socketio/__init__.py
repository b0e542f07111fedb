"""Engine.IO 4 and Socket.IO 5, for any application: it knows no machines."""
