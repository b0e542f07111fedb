"""Engine.IO 4 and Socket.IO 5 for any application, independent of machines and of the bus."""
